//! How a run ends, and the exit status that says so.

/// Why a VM stopped running.
#[derive(Debug)]
pub enum End {
    /// PSCI SYSTEM_OFF.
    Off,
    /// PSCI SYSTEM_RESET: 0, or the type of a SYSTEM_RESET2.
    Reset(u64),
    /// The guest did what no virtual machine can answer: exception class (Arm ARM, ESR_ELx.EC).
    Crash(u64),
    /// The user typed Ctrl-].
    Left,
    /// A signal asked for it.
    Signal(i32),
    /// The host's side cannot go on.
    Failed(String),
}

impl End {
    /// The exit status of `porthole run`.
    pub fn status(&self) -> u8 {
        match self {
            Self::Off | Self::Left => 0,
            Self::Failed(_) => 1,
            Self::Reset(_) => 3,
            Self::Crash(_) => 4,
            Self::Signal(number) => u8::try_from(128 + number).unwrap_or(1),
        }
    }

    /// What to tell the user, if the status does not say it all.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Off | Self::Left | Self::Signal(_) => None,
            Self::Reset(kind) => Some(format!("the guest asked for a reset (type {kind})")),
            Self::Crash(class) => Some(format!(
                "the guest crashed (exception class {class:#x}); see `porthole log`"
            )),
            Self::Failed(why) => Some(why.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_the_status_that_help_promises() {
        for (end, status) in [
            (End::Off, 0),
            (End::Left, 0),
            (End::Failed(String::new()), 1),
            (End::Reset(0), 3),
            (End::Crash(0x24), 4),
            (End::Signal(2), 130),
            (End::Signal(15), 143),
        ] {
            assert_eq!(end.status(), status, "{end:?}");
        }
    }
}
