"""What a launcher's job is made of: the tasks that its workers run, and how they ended."""
