// The cells of a patch swap: images i and pairs + i exchange the square cells that the mask names.
#pragma once
#include "memory.cuh"

struct Cells {
  const uint8_t *mask;     // [pairs, cells], row-major cells; null: nothing is exchanged
  Divide units, rows;      // units and rows of a cell; a unit is what one thread moves and lies in one cell
  uint32_t columns, cells, pairs, pad;
};
static_assert(sizeof(Cells) == 48, "cuda/src/image.rs asserts the same");

// The image that unit `unit` of row `row` of image `image` is taken from.
DEVICE uint32_t source_image(const Cells &c, uint32_t image, uint32_t row, uint32_t unit) {
  const uint32_t pair = image < c.pairs ? image : image - c.pairs;
  const bool swapped = c.mask[pair * c.cells + row / c.rows * c.columns + unit / c.units] != 0;
  return !swapped ? image : image < c.pairs ? image + c.pairs : pair;
}
