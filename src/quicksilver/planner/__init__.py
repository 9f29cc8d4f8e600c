"""The planner: will it fit, how fast will it be and what will it cost, on machines that are not here."""
