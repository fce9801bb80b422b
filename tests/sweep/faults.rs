//! Every failure mode at every call of a sweep.
