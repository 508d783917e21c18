"""What others would write: each runs in a process of its own, data by JSON what to do, and answers in JSON."""
