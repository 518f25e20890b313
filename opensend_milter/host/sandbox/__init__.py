"""The whole product in one directory: started, kept, tried and taken down."""
