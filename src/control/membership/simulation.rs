//! Whole clusters of machines under a virtual clock, on wires that delay, lose, and carry one way only.
