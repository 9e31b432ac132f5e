"""Small functions of the kind that people ask a model to write; write.py leaves their bodies out.

Parameters are annotated with what it may call them with.
"""

import re


def double_all(numbers: list[int]) -> list[int]:
    """Return a list in which each number is doubled."""
    return [2 * number for number in numbers]


def count_above(numbers: list[int], limit: int) -> int:
    """Return how many of the numbers are larger than the limit."""
    return sum(number > limit for number in numbers)


def swap_ends(numbers: list[int]) -> list[int]:
    """Return a copy of the list with its first and last elements exchanged."""
    return [numbers[-1], *numbers[1:-1], numbers[0]]


def second_largest(numbers: list[int]) -> int:
    """Find the second largest of the distinct numbers."""
    return sorted(set(numbers))[-2]


def word_lengths(sentence: str) -> list[int]:
    """Split the sentence at spaces and give the number of letters of each word."""
    return [len(word) for word in sentence.split()]


def shout(text: str) -> str:
    """Make the text loud: all letters become capitals, and '!' is added."""
    return text.upper() + "!"


def last_digits(numbers: list[int]) -> list[int]:
    """For each non-negative integer in the list, return its last decimal digit."""
    return [number % 10 for number in numbers]


def pair_up(first: list[int], second: list[str]) -> list[tuple]:
    """Combine two lists into a list of pairs; what is left over of the longer one is dropped."""
    return list(zip(first, second, strict=False))


def initials(name: str) -> str:
    """Given a full name, return the first letters of its parts in capitals."""
    return "".join(part[0].upper() for part in name.split())


def running_minimum(numbers: list[int]) -> list[int]:
    """For every position return the smallest number seen so far."""
    return [min(numbers[: place + 1]) for place in range(len(numbers))]


def rotate_left(numbers: list[int], k: int) -> list[int]:
    """Move the first k elements to the end of the list."""
    return numbers[k:] + numbers[:k]


def digit_product(n: int) -> int:
    """Multiply all decimal digits of n."""
    product = 1
    for digit in str(n):
        product *= int(digit)
    return product


def is_square(n: int) -> bool:
    """Return True if n is the square of an integer, and False otherwise."""
    return int(n**0.5 + 0.5) ** 2 == n


def remove_short_words(sentence: str, length: int) -> str:
    """Keep only the words with at least `length` letters."""
    return " ".join(word for word in sentence.split() if len(word) >= length)


def row_sums(matrix: list[list[int]]) -> list[int]:
    """Given a matrix as a list of rows, add up the numbers of every row."""
    return [sum(row) for row in matrix]


def transpose(matrix: list[list[int]]) -> list[list[int]]:
    """Turn the rows of a matrix into columns and its columns into rows."""
    return [list(column) for column in zip(*matrix, strict=True)]


def invert(d: dict[str, int]) -> dict[int, str]:
    """Exchange the keys and the values of a dictionary."""
    return {value: key for key, value in d.items()}


def total(prices: dict[str, int]) -> int:
    """Given a dictionary of items and their prices, return what all of them cost."""
    return sum(prices.values())


def between(numbers: list[int], low: int, high: int) -> list[int]:
    """Return the numbers that are at least low and at most high."""
    return [number for number in numbers if low <= number <= high]


def alternate_case(text: str) -> str:
    """Make every other character of the string a capital, starting with the first one."""
    return "".join(c.lower() if place % 2 else c.upper() for place, c in enumerate(text))


def celsius(fahrenheit: int) -> float:
    """Given a temperature in Fahrenheit, return it in Celsius, rounded to one place."""
    return round((fahrenheit - 32) * 5 / 9, 1)


def differences(numbers: list[int]) -> list[int]:
    """For each pair of consecutive elements return the second one minus the first one."""
    return [after - before for before, after in zip(numbers, numbers[1:], strict=False)]


def index_of_largest(numbers: list[int]) -> int:
    """At which place is the maximum of the list? Return the first such index."""
    return numbers.index(max(numbers))


def join_with_and(words: list[str]) -> str:
    """Write a list of words as in a sentence: with commas, and 'and' before the last."""
    return ", ".join(words[:-1]) + " and " + words[-1]


def dot_product(a: list[int], b: list[int]) -> int:
    """Multiply two lists element by element and add up the results."""
    return sum(x * y for x, y in zip(a, b, strict=False))


def countdown(n: int) -> list[int]:
    """Make a list that counts down from n to one."""
    return list(range(n, 0, -1))


def mask(text: str, shown: int) -> str:
    """Hide a string behind '*', all but its last `shown` characters."""
    return "*" * (len(text) - shown) + text[-shown:]


def grade(points: int) -> str:
    """Turn points into a grade: 'A' from 40, 'B' from 30, 'C' from 20, and 'F' below."""
    return "A" if points >= 40 else "B" if points >= 30 else "C" if points >= 20 else "F"


def average_length(words: list[str]) -> float:
    """How many letters do the words have on average? Round to two places."""
    return round(sum(map(len, words)) / len(words), 2)


def ends_alike(a: str, b: str) -> bool:
    """Check whether both strings end with the same letter."""
    return a[-1] == b[-1]


def insert_sorted(numbers: list[int], x: int) -> list[int]:
    """Return the numbers and x in ascending order."""
    return sorted([*numbers, x])


def compress(text: str) -> str:
    """Replace runs of the same character by the character and how often it comes."""
    return re.sub(r"(.)\1*", lambda run: f"{run[1]}{len(run[0])}", text)


def steps_to_one(n: int) -> int:
    """Halve n if it is even, else subtract one. How many steps does it take to reach one?"""
    steps = 0
    while n > 1:
        n, steps = n - 1 if n % 2 else n // 2, steps + 1
    return steps


def without(numbers: list[int], unwanted: list[int]) -> list[int]:
    """Return the numbers that are not among the unwanted ones."""
    return [number for number in numbers if number not in unwanted]


def area_and_perimeter(width: int, height: int) -> tuple[int, int]:
    """Given the sides of a rectangle, return its area and its perimeter."""
    return width * height, 2 * (width + height)


def every_third(numbers: list[int]) -> list[int]:
    """Keep the elements at the indices 0, 3, 6 and so on."""
    return numbers[::3]


def binary_ones(n: int) -> int:
    """Count the ones in the binary form of n."""
    return n.bit_count()


def same_letters(a: str, b: str) -> bool:
    """Check whether two words consist of the same letters, in any order."""
    return sorted(a) == sorted(b)
