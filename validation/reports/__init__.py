"""Results documents as things people and CI systems read: Markdown, JUnit XML and one HTML page."""
