//! Supervision with real processes and real signals: who is started again, in which order children stop, what storms of
//! deaths leave, and what supervisors are worth that live in workers or are called from below.

mod calls;
mod chaos;
mod nested;
mod stopping;
mod storm;
mod strategies;
mod trees;
