"""What a run is: its records and events, the tasks of its steps, and where they may be sent."""
