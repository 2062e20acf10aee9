//! Parts of the way of a call, alone.
