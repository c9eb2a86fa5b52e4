//! The marks of what a job makes: they hold its tag, stand on the thing, and find it ([`crate::things`]). Pure.

use super::super::Work;

/// Infix of an attachment's mark; its volume stands behind it.
const ATTACHMENT: &str = "-attachment-";

/// Those of one job.
#[derive(Debug, Clone)]
pub(super) struct Marks {
    tag: String,
}

impl Marks {
    pub(super) fn of(work: &Work<'_>) -> Self {
        Self { tag: work.job.files.tag.clone() }
    }

    /// Of the n-th disk, from 1.
    pub(super) fn disk(&self, number: usize) -> String {
        format!("{}-disk-{number}", self.tag)
    }

    /// Of a volume in the conversion server.
    pub(super) fn attachment(&self, volume: &str) -> String {
        format!("{}{ATTACHMENT}{volume}", self.tag)
    }

    /// Of an offer of a volume.
    pub(super) fn transfer(&self, volume: &str) -> String {
        format!("{}-transfer-{volume}", self.tag)
    }

    /// Of the n-th port, from 0.
    pub(super) fn port(&self, number: usize) -> String {
        format!("{}-port-{number}", self.tag)
    }

    /// Of the new server.
    pub(super) fn server(&self) -> String {
        format!("{}-server", self.tag)
    }

    /// Of the volumes that virt-v2v makes, before its log tells which.
    pub(super) fn virt_v2v(&self) -> String {
        format!("{}{VIRT_V2V}", self.tag)
    }
}

const VIRT_V2V: &str = "-virt-v2v";

/// Does this mark stand for all volumes that virt-v2v makes?
pub(super) fn is_of_virt_v2v(mark: &str) -> bool {
    mark.ends_with(VIRT_V2V)
}

/// The volume of an attachment.
pub(super) fn volume_of(mark: &str) -> Option<&str> {
    mark.split_once(ATTACHMENT).map(|(_, volume)| volume)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_what_they_are_of() {
        let marks = Marks { tag: "20261121T120000-7".to_owned() };
        let volume = "77c51545-f2a4-4bbf-8f04-169a15c23354";
        assert_eq!(volume_of(&marks.attachment(volume)), Some(volume));
        assert_eq!(volume_of(&marks.transfer(volume)), None);
        assert!(
            is_of_virt_v2v(&marks.virt_v2v()) && !is_of_virt_v2v(&marks.disk(1)) && !is_of_virt_v2v(volume)
        );
        assert!(!is_of_virt_v2v(&marks.port(0)) && !is_of_virt_v2v(&marks.server()));
        let all = [marks.disk(1), marks.disk(11), marks.port(1), marks.server(), marks.transfer("1")];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
