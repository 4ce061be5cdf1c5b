"""What every long run has: a folder of its own, settings that must not be mixed, a note of the machine."""
