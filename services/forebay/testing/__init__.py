"""What tests share: a movable clock, a real Valkey, and the whole mesh over loopback."""
