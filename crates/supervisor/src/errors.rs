//! Why something that was asked of a supervisor was not done.

use hatchery_actor::fault::Fault;
use serde::{Deserialize, Serialize};

use crate::policy::Refusal;

/// Why something that was asked for was not done, before it is known what it was.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Which rule says so, if one does.
    pub(crate) refusal: Option<Refusal>,
    pub(crate) fault: Fault,
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Refused {
        Refused { refusal: None, fault }
    }
}

impl Refused {
    pub(crate) fn by_rule(refusal: Refusal, name: &str) -> Refused {
        let why = match refusal {
            Refusal::AlreadyStarted => {
                format!("the name {name:?} is taken: names are unique among siblings, choose another")
            }
            Refusal::AlreadyPresent => format!(
                "the name {name:?} is taken by a child that does not run right now: `restart_child` starts one that is \
                 stopped, `delete_child` frees its name"
            ),
            Refusal::Running => "it runs: `terminate_child` stops it".to_owned(),
            Refusal::Restarting => {
                "it is being restarted: wait for it, or stop that with `terminate_child`".to_owned()
            }
            Refusal::Unkillable => "it cannot be killed, and is still there: nobody is started beside it; once it is \
                gone, `restart_child` and `delete_child` work"
                .to_owned(),
            Refusal::NotFound => format!("there is no child {name:?}: `children` lists those there are"),
            Refusal::MaxChildren => {
                "its supervisor has as many children as `max_children` allows: allow more, or free a place with \
                 `terminate_child` and `delete_child`"
                    .to_owned()
            }
            Refusal::Contradiction(contradiction) => contradiction.to_string(),
            Refusal::Ending => return Refused::from(stopping()),
        };
        Refused { refusal: Some(refusal), fault: Fault::Refused(why) }
    }
}

pub(crate) fn stopping() -> Fault {
    Fault::Closed { why: "its supervisor is stopping".to_owned() }
}

/// Why a supervisor or a child did not start. A worker that takes too long to start is killed: that is a
/// timeout, and the error has its exit.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("start of {what}: {fault}")]
pub struct StartError {
    what: String,
    #[source]
    fault: Fault,
    refusal: Option<Refusal>,
}

/// Why a child was not started again, stopped or removed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {fault}")]
pub struct ChildError {
    what: String,
    #[source]
    fault: Fault,
    refusal: Option<Refusal>,
}

macro_rules! shown_for_people {
    ($error:ty) => {
        impl std::fmt::Debug for $error {
            /// For people, as `unwrap` shows it: the text, and the worker's last words.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{self}")?;
                self.fault.show_last_words(f)
            }
        }

        impl $error {
            pub(crate) fn new(what: String, Refused { refusal, fault }: Refused) -> $error {
                Self { what, fault, refusal }
            }

            /// The library's own reason.
            #[doc(hidden)]
            pub fn fault(&self) -> Option<&Fault> {
                Some(&self.fault)
            }

            hatchery_actor::predicates!();
        }
    };
}

shown_for_people!(StartError);
shown_for_people!(ChildError);

impl StartError {
    /// Of what was refused before a supervisor was asked.
    #[doc(hidden)]
    pub fn refused(what: String, fault: Fault) -> StartError {
        StartError::new(what, fault.into())
    }

    /// Whether the supervisor has a child of that name, which runs or is being started.
    pub fn is_already_started(&self) -> bool {
        self.refusal == Some(Refusal::AlreadyStarted)
    }

    /// Whether the supervisor has as many children as [`max_children`](crate::builder::Supervisor::max_children) allows.
    pub fn is_max_children(&self) -> bool {
        self.refusal == Some(Refusal::MaxChildren)
    }

    /// Whether things were asked for that cannot be had together: rules of a supervisor, or those and a child's. Nothing
    /// was started.
    pub fn is_contradiction(&self) -> bool {
        matches!(self.refusal, Some(Refusal::Contradiction(_)))
    }

    /// Whether the supervisor has a child of that name, which is stopped or being restarted.
    pub fn is_already_present(&self) -> bool {
        self.refusal == Some(Refusal::AlreadyPresent)
    }

    /// Whether the supervisor has a child of that name which cannot be killed: nobody is started beside it.
    pub fn is_unkillable(&self) -> bool {
        self.refusal == Some(Refusal::Unkillable)
    }
}

impl ChildError {
    /// Whether there is no child of that name.
    pub fn is_not_found(&self) -> bool {
        self.refusal == Some(Refusal::NotFound)
    }

    /// Whether the child runs: it would have to be stopped first.
    pub fn is_running(&self) -> bool {
        self.refusal == Some(Refusal::Running)
    }

    /// Whether the child is being restarted.
    pub fn is_restarting(&self) -> bool {
        self.refusal == Some(Refusal::Restarting)
    }

    /// Whether the child was given up before because it cannot be killed, and is still there.
    pub fn is_unkillable(&self) -> bool {
        self.refusal == Some(Refusal::Unkillable)
    }
}
