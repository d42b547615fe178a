//! Trees of real processes: what lives below what, and what is seen of it.

mod nested;
