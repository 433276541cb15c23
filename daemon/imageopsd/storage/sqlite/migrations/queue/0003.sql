-- Dead letters are forgotten by their age.
CREATE INDEX dead_letters_by_age ON dead_letters (refused);
