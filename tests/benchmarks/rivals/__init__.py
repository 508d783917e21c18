"""What others would write: each runs in a process of its own, told by JSON what to do, and answers in JSON."""
