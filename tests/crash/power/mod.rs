//! The power fails. A process works on a store with the [shim](shim) in front of its files; the [trace](trace) of what it
//! did is replayed onto a [disk](disk) that may lose what was not synced; what is then found there is opened, and compared
//! with what had been confirmed by that moment.

pub(crate) mod disk;
mod images;
pub(crate) mod model;
pub(crate) mod shim;
pub(crate) mod trace;
mod work;
