"""Coverage-guided fuzzing: ``make fuzz``; see README.md beside this file."""
