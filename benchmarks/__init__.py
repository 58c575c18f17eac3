"""Our speed beside what people use instead, in one run."""
