//! Configuration space and capabilities of the card.
