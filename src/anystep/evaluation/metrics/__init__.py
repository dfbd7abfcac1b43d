"""What is measured of generated images against real ones: one metric a file."""
