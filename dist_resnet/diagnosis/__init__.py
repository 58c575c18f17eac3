"""What is wrong, and what takes the time: an examination before a training, and within one."""
