//! What a parent may want of the actor in this process, perhaps before there is anything that could do it.

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

/// What the parent wants for now, and what does it.
#[derive(Default)]
pub(crate) struct Wishes {
    stop: bool,
    suspend: bool,
    act: Option<OnWish>,
}

impl Wishes {
    /// From now on this does what is wanted, what is wanted already at once.
    pub(crate) fn heed(&mut self, act: OnWish) {
        if self.suspend {
            act(Wish::Suspend);
        }
        if self.stop {
            act(Wish::Stop);
        }
        self.act = Some(act);
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
