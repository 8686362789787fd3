"""Short-to-long distillation: teacher -> extended sequences -> student (SimCast section 3)."""
