"""The driver of every zeroth-order method: steps, rounds, records, rates and state."""
