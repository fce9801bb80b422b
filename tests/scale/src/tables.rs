//! Tables, as docs/scale.md shows them.
