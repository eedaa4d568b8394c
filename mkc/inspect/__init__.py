"""Looking at what was compiled. Everything here reads a Compilation or a run's stamps and changes nothing."""
