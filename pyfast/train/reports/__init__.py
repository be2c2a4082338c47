"""What is shown of runs: tables, pictures, dashboards, and several side by side."""
