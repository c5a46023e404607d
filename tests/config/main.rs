//! The configuration as operators meet it: what is refused and how, what is accepted, what is documented.

mod bad;
