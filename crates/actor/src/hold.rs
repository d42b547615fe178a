//! Who has to be gone before somebody sits down in a seat again: requests that wait there, and that those wait for, would
//! hold up the very one they wait for.

use serde::{Deserialize, Serialize};

use crate::chain::Chain;
use crate::exit::Exit;
use crate::fault::Fault;
use crate::incarnation;

/// Those that have to be gone before anybody sits down in a vacant seat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Another one with each change; 0 if nobody has to.
    pub number: u64,
    /// Their paths. Whoever lives below one of them is meant, too.
    pub by: Vec<String>,
    /// How the latest one ended that sat there, as far as that is known.
    pub exit: Option<Box<Exit>>,
}

/// Most paths that are told: one is usual, and each is told when its turn has come. Whoever is left out waits as ever.
const MOST: usize = 16;
/// Most bytes of them.
const BYTES: usize = 4096;

/// So many of these paths as are told.
pub(crate) fn few(by: &[String]) -> &[String] {
    let mut bytes = 0;
    let fits = |path: &&String| {
        bytes += path.len();
        bytes <= BYTES
    };
    &by[..by.iter().take(MOST).take_while(fits).count()]
}

impl Hold {
    /// Whether a request with this chain is waited for by one of those: then it is never answered while that one is there.
    pub(crate) fn concerns(&self, chain: Option<&Chain>) -> bool {
        chain.is_some_and(|chain| chain.passes(&self.by))
    }

    /// What such a request gets: how the latest one ended, and that it was not sent to anybody.
    pub(crate) fn fault(&self) -> Fault {
        match &self.exit {
            Some(exit) if !exit.is_orderly() => incarnation::over(exit),
            _ => Fault::Stopping,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_told_than_fits_into_a_frame() {
        let paths = |count: usize, length: usize| vec!["/".repeat(length); count];
        assert_eq!(few(&paths(3, 10)).len(), 3);
        assert_eq!(few(&paths(100, 10)).len(), MOST);
        assert_eq!(few(&paths(10, 1000)).len(), 4);
        assert!(few(&paths(1, BYTES + 1)).is_empty());
    }
}
