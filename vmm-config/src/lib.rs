//! Configuration of VMMs.
