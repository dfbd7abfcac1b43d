"""What serves images to others: one engine with its queue, the HTTP service in front of it, and a page."""
