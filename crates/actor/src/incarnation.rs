//! One incarnation, as those know it who want no other.

use std::sync::{Arc, OnceLock};

use crate::address::Tenure;
use crate::exit::{Exit, Status};
use crate::fault::Fault;

/// Names an incarnation, and learns how it ended.
#[derive(Clone, Debug)]
pub(crate) struct Incarnation {
    /// As it is counted here.
    pub(crate) number: u64,
    /// As it is known everywhere.
    pub(crate) tenure: Tenure,
    pub(crate) exit: Arc<OnceLock<Exit>>,
}

impl Incarnation {
    pub(crate) fn new(number: u64, tenure: Tenure) -> Incarnation {
        Incarnation { number, tenure, exit: Arc::default() }
    }

    /// What a request gets that comes after its end. It was not sent to anybody.
    pub(crate) fn over(&self) -> Fault {
        over(self.exit.get().unwrap_or(&Exit::new(Status::Unknown)))
    }
}

/// What a request gets that was not sent to the one incarnation it was meant for.
pub(crate) fn over(exit: &Exit) -> Fault {
    Fault::Ended { exit: Box::new(exit.clone()), maybe_executed: false }
}
