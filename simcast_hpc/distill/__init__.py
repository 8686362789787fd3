"""Short-to-long distillation: the teacher extends sequences, on which the student is trained (SimCast, section 3)."""
