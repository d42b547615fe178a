//! An actor's reference to itself: a seat that only it knows, in its own process, with a window of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::child::{BoxFuture, Child, Ended, Rung, ended};
use crate::exit::{Exit, Panic};
use crate::mailbox::Mailbox;
use crate::near::NearLine;
use crate::seat::Seat;
use crate::tasks::Tasks;

/// Makes the seat when somebody first asks for it, and closes it with its incarnation.
///
/// The seat leads to the mailbox, and what waits in the mailbox leads back to the seat: only [`end`](Me::end) takes
/// them apart.
#[derive(Default)]
pub(crate) struct Me {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seat: Option<Arc<Seat>>,
    exit: watch::Sender<Option<Arc<Exit>>>,
}

const ENDED: &str = "this incarnation has ended, and a reference to oneself is to one incarnation";

impl Me {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A seat that is just being made runs no foreign code.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seat(
        &self,
        (path, number): (&str, u64),
        actor: &'static str,
        incarnation: u64,
        mailbox: &Arc<Mailbox>,
        tasks: &Arc<Tasks>,
    ) -> Arc<Seat> {
        let State { seat, exit } = &mut *self.lock();
        let made = seat.get_or_insert_with(|| {
            let seat = Seat::own(path.to_owned(), number, actor, mailbox.id());
            if exit.borrow().is_some() {
                seat.close(ENDED);
                return seat;
            }
            let line = NearLine::new(mailbox.clone(), seat.clone(), incarnation);
            let child = OneSelf { mailbox: mailbox.clone(), tasks: tasks.clone(), exited: exit.subscribe() };
            seat.occupy(incarnation, Arc::new(child), Arc::new(line));
            seat
        });
        made.clone()
    }

    /// The incarnation has ended.
    pub(crate) fn end(&self, incarnation: u64, exit: &Exit) {
        let seat = {
            let state = self.lock();
            state.exit.send_replace(Some(Arc::new(exit.clone())));
            state.seat.clone()
        };
        if let Some(seat) = seat {
            seat.ended(incarnation, exit);
            seat.close(ENDED);
        }
    }
}

/// The actor as something that it can stop itself.
struct OneSelf {
    mailbox: Arc<Mailbox>,
    tasks: Arc<Tasks>,
    exited: Ended,
}

impl Child for OneSelf {
    fn stop(&self, rung: Rung) {
        match rung {
            Rung::Drain => self.mailbox.drain(),
            Rung::Graceful | Rung::Term => self.mailbox.stop(),
            Rung::Kill => {
                let message = "killed through its own handle".to_owned();
                self.tasks.crash(Panic { message, place: None });
            }
        }
    }

    fn pid(&self) -> Option<u32> {
        Some(std::process::id())
    }

    fn exited(&self) -> BoxFuture<Arc<Exit>> {
        Box::pin(ended(self.exited.clone()))
    }
}
