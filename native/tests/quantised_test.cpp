// Tests of matrices in blocks through the C++ interface, on every target of this CPU and for
// sanitizers: every format, few and many rows, sizes that end inside a slice, in arrays without a
// spare byte. The expected result is that of the written weights; Python's tests compare these
// with another implementation.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "../core.h"

namespace keywise {
namespace {

int failures = 0;

constexpr BlockFormat kFormats[] = {BlockFormat::q4_0, BlockFormat::q4_1,  BlockFormat::q5_0,
                                    BlockFormat::q5_1, BlockFormat::q8_0,  BlockFormat::q2_k,
                                    BlockFormat::q3_k, BlockFormat::q4_k,  BlockFormat::q5_k,
                                    BlockFormat::q6_k, BlockFormat::iq4_nl};

// Random bits whose float16 numbers are finite: no exponent has all its bits set.
std::vector<uint8_t> make_blocks(int64_t bytes) {
  std::mt19937 generator(7);
  std::vector<uint8_t> blocks(static_cast<size_t>(bytes));
  for (uint8_t& byte : blocks) byte = uint8_t(generator() & 0xbb);
  return blocks;
}

std::vector<float> make_inputs(int64_t count) {
  std::mt19937 generator(8);
  std::normal_distribution<float> normal;
  std::vector<float> inputs(static_cast<size_t>(count));
  for (float& input : inputs) input = normal(generator);
  return inputs;
}

void check_product(BlockFormat format, int64_t columns, int64_t count, const Target& target) {
  constexpr int64_t kRows = 35;
  const BlockSize block = block_size(format);
  QuantisedMatrix matrix;
  matrix.format = format;
  matrix.rows = kRows;
  matrix.columns = columns;
  matrix.row_bytes = columns / block.elements * block.bytes;
  const std::vector<uint8_t> blocks = make_blocks(kRows * matrix.row_bytes);
  matrix.data = blocks.data();
  const std::vector<float> inputs = make_inputs(count * columns);
  std::vector<float> weights(static_cast<size_t>(kRows * columns));
  dequantise(matrix, weights.data(), Dtype::float32, target, 2, nullptr);
  std::vector<float> output(static_cast<size_t>(count * kRows));
  std::vector<float> again(output.size());
  multiply_quantised(matrix, inputs.data(), count, Dtype::float32, output.data(), target, 1,
                     nullptr);
  multiply_quantised(matrix, inputs.data(), count, Dtype::float32, again.data(), target, 3,
                     nullptr);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t row = 0; row < kRows; ++row) {
      double expected = 0.0;
      double size = 0.0;
      for (int64_t k = 0; k < columns; ++k) {
        const double product =
            double(inputs[size_t(i * columns + k)]) * double(weights[size_t(row * columns + k)]);
        expected += product;
        size += std::fabs(product);
      }
      const size_t place = size_t(i * kRows + row);
      if (!(std::fabs(double(output[place]) - expected) <= 2e-3 * size) ||
          output[place] != again[place]) {
        std::printf("%s format %d, %d columns, %d inputs: %g instead of %g\n", target.name,
                    int(format), int(columns), int(count), double(output[place]), expected);
        ++failures;
        return;
      }
    }
}

void check_target(const Target& target) {
  for (const BlockFormat format : kFormats)
    for (const int64_t columns : {32, 96, 256, 288, 768})
      for (const int64_t count : {1, 2, 8, 9, 32, 37})
        if (columns % block_size(format).elements == 0)
          check_product(format, columns, count, target);
}

}  // namespace
}  // namespace keywise

int main() {
  const keywise::Candidate* list;
  const int count = keywise::candidates(&list);
  for (int i = 0; i < count; ++i)
    if (!*list[i].reason) keywise::check_target(*list[i].target);
  std::printf("quantised_test: %d failures\n", keywise::failures);
  return keywise::failures > 0;
}
