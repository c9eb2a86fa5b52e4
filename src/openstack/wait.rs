//! Waiting for states, and making things once: what all kinds of things have in common.

use std::time::Duration;

use tokio::time::Instant;

use super::CloudError;

/// Between two looks, at first and later.
const SOON: Duration = Duration::from_millis(300);
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a thing is looked for whose creation nobody answered: the server may still be at it.
const LOOKS: u32 = 3;
/// How often it is asked for in all.
const TRIES: u32 = 3;

/// What one look at a thing tells.
#[derive(Debug)]
pub enum Look<T> {
    /// As it was waited for.
    Done(T),
    /// Not yet: its state, in the server's word.
    Not(String),
}

/// Looks until it is as wanted, or `patience` is over. An error of a look ends it.
pub async fn until<T>(
    what: &'static str,
    id: &str,
    wanted: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<Look<T>, CloudError>,
) -> Result<T, CloudError> {
    let begun = Instant::now();
    let mut pause = SOON;
    loop {
        let status = match look().await? {
            Look::Done(value) => return Ok(value),
            Look::Not(status) => status,
        };
        let waited = begun.elapsed();
        if waited >= patience {
            let (id, wanted) = (id.to_owned(), wanted.to_owned());
            return Err(CloudError::Slow { what, id, status, wanted, waited });
        }
        tokio::time::sleep(pause.min(patience.saturating_sub(waited))).await;
        pause = (pause * 2).min(LOOK_EVERY);
    }
}

/// Makes a thing once, whatever answers are lost: one that is there already is taken, and after a request that may have
/// been obeyed it is looked for before it is asked for again. `begun`: an earlier process may have asked for it.
pub async fn once<T>(
    begun: bool,
    mut find: impl AsyncFnMut() -> Result<Option<T>, CloudError>,
    mut make: impl AsyncFnMut() -> Result<T, CloudError>,
) -> Result<T, CloudError> {
    if begun && let Some(found) = find().await? {
        return Ok(found);
    }
    let mut tries = 1;
    loop {
        let error = match make().await {
            Ok(made) => return Ok(made),
            Err(error) if error.is_ambiguous() => error,
            Err(error) => return Err(error),
        };
        tracing::warn!("{}: looking whether it was done all the same", crate::log::chain(&error));
        for look in 0..LOOKS {
            tokio::time::sleep(SOON * 3_u32.pow(look)).await;
            if let Some(found) = find().await? {
                return Ok(found);
            }
        }
        if tries == TRIES {
            return Err(error);
        }
        tries += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::HttpError;

    fn lost() -> CloudError {
        HttpError::NotJson { asked: "POST x".into(), reason: "cut".into() }.into()
    }

    fn refused() -> CloudError {
        let status = reqwest::StatusCode::FORBIDDEN;
        HttpError::Refused { asked: "POST x".into(), status, said: "no".into() }.into()
    }

    /// (asked, looked) for a creation whose answers are these, of a thing that can be found from the n-th look on.
    async fn counted(
        begun: bool,
        mut answers: Vec<Result<u8, CloudError>>,
        from: usize,
    ) -> (bool, usize, usize) {
        let (mut asked, mut looked) = (0, 0);
        let made = once(
            begun,
            async || {
                looked += 1;
                Ok((looked >= from).then_some(1))
            },
            async || {
                asked += 1;
                answers.remove(0)
            },
        )
        .await;
        (made.is_ok(), asked, looked)
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_be_there_is_looked_for_before_it_is_made_again() {
        let never = usize::MAX;
        assert_eq!(counted(false, vec![Ok(1)], never).await, (true, 1, 0));
        assert_eq!(counted(true, vec![], 1).await, (true, 0, 1));
        assert_eq!(counted(true, vec![Ok(1)], never).await, (true, 1, 1));
        assert_eq!(counted(false, vec![Err(lost())], 2).await, (true, 1, 2));
        assert_eq!(counted(false, vec![Err(lost()), Ok(1)], never).await, (true, 2, 3));
        assert_eq!(counted(false, vec![Err(refused())], 1).await, (false, 1, 0));
        assert_eq!(counted(false, vec![Err(lost()), Err(lost()), Err(lost())], never).await, (false, 3, 9));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_the_last_state() {
        let mut looks = 0;
        let slow = until::<()>("volume", "v", "available", Duration::from_secs(600), async || {
            looks += 1;
            Ok(Look::Not("creating".to_owned()))
        });
        let said = slow.await.unwrap_err().to_string();
        assert_eq!(said, "volume v is still in state creating after 600 s, not available");
        assert!(looks > 300, "{looks}");
    }
}
