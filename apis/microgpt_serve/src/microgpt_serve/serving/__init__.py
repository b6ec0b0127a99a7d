"""How the service runs: workers, threads, limits, the log, metrics; it knows no route."""
