//! What subnet management sees of a node.
