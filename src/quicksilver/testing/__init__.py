"""What tests of engines and techniques need, shipped so that anyone's can be proved."""
