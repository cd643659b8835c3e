"""Pure values and rules of metering: events, prices, bookings, the chain. No clock, no I/O; money and counts are integers."""
