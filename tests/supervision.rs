//! Supervision with real processes and real signals: who is started again, in which order children stop and how they leave,
//! what storms of deaths leave, what is taken for hung, and what supervisors are worth that live in workers or are called
//! from below.

mod calls;
mod chaos;
mod held;
mod nested;
mod stopping;
mod stops;
mod storm;
mod strategies;
mod trees;
mod watchdog;
