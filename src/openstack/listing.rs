//! Listings that show all there is to say of each thing. What `GET` of a page is, and what follows it, is [`Cloud::list`]'s.

use serde_json::Value;

use super::catalogue::{Service, text};
use super::{Cloud, CloudError};
use crate::http::encoded;

impl Cloud {
    /// All things below `path`, whole: of the listing with details, else each of the plain one by itself. `one` and `many`
    /// are the keys of a thing and of a listing.
    pub(super) async fn list_whole(
        &self,
        service: Service,
        path: &str,
        one: &str,
        many: &str,
    ) -> Result<Vec<Value>, CloudError> {
        match self.list(service, &format!("{path}/detail"), many).await {
            Err(error) if error.tells_nothing() => {}
            listed => return listed,
        }
        let mut whole = Vec::new();
        for entry in self.list(service, path, many).await? {
            let Some(id) = text(&entry, "id") else { continue };
            match self.get(service, &format!("{path}/{}", encoded(&id))).await {
                Ok(answer) => whole.push(answer.get(one).cloned().unwrap_or(entry)),
                // Gone since it was listed.
                Err(error) if error.is_not_found() => {}
                Err(error) if error.tells_nothing() => whole.push(entry),
                Err(error) => return Err(error),
            }
        }
        Ok(whole)
    }
}
