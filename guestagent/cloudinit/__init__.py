"""The user-data and vendor-data that bring the agent to a new VM."""
