//! What a parent may want of the actor in this process, perhaps before there is anything that could do it; and what it may
//! want to know.

use hatchery_actor::watchdog::MailboxInfo;

/// What a parent may want of the actor in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Stop in order.
    Stop,
    /// Begin nothing new.
    Suspend,
    /// Go on.
    Resume,
}

/// Called when the parent wants something; must not block.
pub(crate) type OnWish = Box<dyn Fn(Wish) + Send>;

/// Called when the parent wants to know what the actor is at; must not block.
pub(crate) type OnLook = Box<dyn Fn() -> MailboxInfo + Send>;

/// What the parent wants for now, and what does it.
#[derive(Default)]
pub(crate) struct Wishes {
    stop: bool,
    suspend: bool,
    act: Option<OnWish>,
    look: Option<OnLook>,
}

impl Wishes {
    /// From now on this does what is wanted, what is wanted already at once.
    pub(crate) fn heed(&mut self, act: OnWish, look: OnLook) {
        if self.suspend {
            act(Wish::Suspend);
        }
        if self.stop {
            act(Wish::Stop);
        }
        self.act = Some(act);
        self.look = Some(look);
    }

    /// What the actor is at, if there is one.
    pub(crate) fn look(&self) -> MailboxInfo {
        self.look.as_ref().map(|look| look()).unwrap_or_default()
    }

    /// The parent wants this.
    pub(crate) fn fulfil(&mut self, wish: Wish) {
        match wish {
            Wish::Stop => self.stop = true,
            Wish::Suspend => self.suspend = true,
            Wish::Resume => self.suspend = false,
        }
        if let Some(act) = &self.act {
            act(wish);
        }
    }
}
