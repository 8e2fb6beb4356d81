#include "ops/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/half.h"
#include "support/op_test.h"
#include "support/weights.h"

namespace m4j::test {
namespace {

using Bytes = std::vector<uint8_t>;

std::string name_of(DType t) { return t == DType::kQ8_0 ? "q8_0" : "q4_0"; }

Bytes quantised(const std::vector<float>& weights, DType to) {
  Bytes out(static_cast<size_t>(dtype_bytes(to, static_cast<int64_t>(weights.size()))));
  EXPECT_TRUE(quantize(weights.data(), DType::kF32, static_cast<int64_t>(weights.size()), to, out.data()));
  return out;
}

// By the definition of the formats.
std::vector<float> widened(const Bytes& bytes, DType t) {
  const size_t block = t == DType::kQ8_0 ? 34 : 18;
  std::vector<float> out;
  for (size_t b = 0; b < bytes.size(); b += block) {
    const double d = decode_half(DType::kF16, static_cast<uint16_t>(bytes[b] | bytes[b + 1] << 8));
    for (size_t i = 0; i < 32; ++i) {
      const uint8_t byte = bytes[b + 2 + (t == DType::kQ8_0 ? i : i % 16)];
      const int q = t == DType::kQ8_0 ? static_cast<int8_t>(byte) : (i < 16 ? byte & 15 : byte >> 4) - 8;
      out.push_back(static_cast<float>(d * q));
    }
  }
  return out;
}

double squared_error(const float* a, const float* b) {
  double sum = 0;
  for (int i = 0; i < 32; ++i) sum += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  return sum;
}

TEST(Quantize, EveryF16SurvivesTheWayThere) {
  for (int bits = 0; bits <= 0xffff; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const uint16_t back = f32_to_f16(f16_to_f32(half));
    if (std::isnan(decode_half(DType::kF16, half))) {
      EXPECT_TRUE(std::isnan(decode_half(DType::kF16, back))) << bits;
    } else {
      ASSERT_EQ(back, half);
    }
  }
}

// Between two neighbours the middle goes to the even one, what lies beside it to the nearer one.
TEST(Quantize, F16RoundsToNearestEven) {
  for (int bits = 0; bits < 0x7bff; ++bits) {
    const uint16_t low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
    const float middle = (f16_to_f32(low) + f16_to_f32(high)) / 2;
    ASSERT_EQ(f32_to_f16(middle), bits % 2 == 0 ? low : high) << bits;
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, 0.0f)), low) << bits;
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, INFINITY)), high) << bits;
    ASSERT_EQ(f32_to_f16(-middle), (bits % 2 == 0 ? low : high) | 0x8000) << bits;
  }
  EXPECT_EQ(f32_to_f16(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
}

// Random blocks of every magnitude: no weight is further off than half a step, and the scale of Q4_0 beats the plain one.
TEST(Quantize, ErrorBounds) {
  Random random(run_seed());
  SCOPED_TRACE("M4J_TEST_SEED=" + std::to_string(run_seed()));
  for (const float size : {1e-3f, 0.02f, 1.0f, 300.0f, 30000.0f}) {
    const std::vector<float> w = random.normal(32 * 200, size);
    const std::vector<float> q8 = widened(quantised(w, DType::kQ8_0), DType::kQ8_0);
    const std::vector<float> q4 = widened(quantised(w, DType::kQ4_0), DType::kQ4_0);
    double plain_sum = 0, best_sum = 0;
    for (size_t b = 0; b < w.size(); b += 32) {
      const float extreme = *std::max_element(&w[b], &w[b] + 32, [](float x, float y) { return std::fabs(x) < std::fabs(y); });
      // The scale itself is off by up to 2^-11 of it, or 2^-25 where it is subnormal.
      const double step = std::fabs(extreme) / 127.0, slack = 127 * std::max(step * 0x1p-11, 0x1p-25);
      for (size_t i = b; i < b + 32; ++i) ASSERT_LE(std::fabs(w[i] - q8[i]), step * 0.501 + slack) << size << " " << i;
      const float d = f16_to_f32(f32_to_f16(extreme / -8));
      float plain[32];
      for (size_t i = 0; i < 32; ++i) plain[i] = d * std::clamp(std::nearbyint(w[b + i] / d), -8.0f, 7.0f);
      const double error = squared_error(&w[b], &q4[b]), plain_error = squared_error(&w[b], plain);
      ASSERT_LE(error, plain_error * 1.0001) << size;
      best_sum += error;
      plain_sum += plain_error;
    }
    EXPECT_LT(best_sum, 0.95 * plain_sum) << size;
  }
}

// What is quantised already stays as it is, if its largest code is the last one.
TEST(Quantize, RepresentableBlocksAreExact) {
  Random random(run_seed());
  for (const DType t : {DType::kQ8_0, DType::kQ4_0}) {
    const int last = t == DType::kQ8_0 ? -127 : -8;
    for (int bits = 1; bits < 0x5000; bits += 7) {
      const float d = f16_to_f32(static_cast<uint16_t>(bits));
      std::vector<float> w = random.uniform(32, static_cast<float>(last), static_cast<float>(-last - 1));
      for (float& v : w) v = d * std::nearbyint(v);
      w[static_cast<size_t>(bits % 32)] = d * static_cast<float>(last);
      ASSERT_EQ(widened(quantised(w, t), t), w) << name_of(t) << " scale " << bits;
    }
    EXPECT_EQ(widened(quantised(std::vector<float>(32), t), t), std::vector<float>(32));
  }
}

TEST(Quantize, SixteenBitWeightsAreReadExactly) {
  Random random(run_seed());
  for (const DType from : {DType::kF16, DType::kBF16}) {
    const std::vector<uint16_t> halves = random.halves(320, from);
    std::vector<float> wide;
    for (uint16_t h : halves) wide.push_back(static_cast<float>(decode_half(from, h)));
    for (const DType t : {DType::kQ8_0, DType::kQ4_0}) {
      Bytes out(static_cast<size_t>(dtype_bytes(t, 320)));
      EXPECT_TRUE(quantize(halves.data(), from, 320, t, out.data()));
      EXPECT_EQ(out, quantised(wide, t));
    }
  }
}

TEST(Quantize, RefusesWhatIsNoNumberOrTooLarge) {
  for (const float bad : {NAN, -NAN, INFINITY, -INFINITY, 0x1.000002p18f, -0x1p100f}) {
    for (const int at : {0, 31, 40, 95}) {
      std::vector<float> w(96, 0.5f);
      for (const DType t : {DType::kQ8_0, DType::kQ4_0}) {
        Bytes out(static_cast<size_t>(dtype_bytes(t, 96)));
        w[static_cast<size_t>(at)] = bad;
        EXPECT_FALSE(quantize(w.data(), DType::kF32, 96, t, out.data())) << bad << " at " << at;
        w[static_cast<size_t>(at)] = 0x1p18f;
        EXPECT_NEAR(widened(quantised(w, t), t)[static_cast<size_t>(at)], 0x1p18f, 0x1p8f);
      }
    }
  }
}

M4J_OP_TEST_SUITE(QuantisedWeights);

// Some instruction sets add codes times activations of 16 bits in integers.
bool adds_integers(const Ops& ops) {
  const std::string name = ops.name;
  return name == "amx" || name == "avx3_bf16" || name.ends_with("_vnni") || name.ends_with("_dotprod");
}
constexpr double kOf16Bits = 1e-4;
double allowed(const Ops& ops, int64_t in) { return adds_integers(ops) ? kOf16Bits : tolerance(in); }

struct Product {
  int64_t in, out_dim;
  DType dtype;
  Bytes weight;             // [out, in]
  std::vector<float> bias;  // [out]

  static Product random(Random& random, int64_t in, int64_t out_dim, DType dtype, float size = 1) {
    return {in, out_dim, dtype, quantised(random.normal(out_dim * in, size), dtype), random.normal(out_dim)};
  }

  std::vector<float> run(const Runner& r, const std::vector<float>& x, const void* weights, DType type) const {
    const int64_t tokens = static_cast<int64_t>(x.size()) / in;
    const auto x_memory = r.in(x, in), bias_memory = r.flat_in(bias);
    const auto out = r.out(tokens, out_dim);
    r.execute(r.ops.linear,
              {x_memory.data(), x_memory.ld(), weights, type, in, bias_memory.data(), tokens, in, out_dim, out.data(),
               out.ld()},
              r.ops.linear_scratch(in, type));
    return out.values();
  }
  std::vector<float> run(const Runner& r, const std::vector<float>& x) const {
    const Layout dense{r.layout.placement, 0};  // kMisaligned: at an odd address
    const auto memory = Guarded<uint8_t>::input(weight, static_cast<int64_t>(weight.size()), dense);
    return run(r, x, memory.data(), dtype);
  }

  Expected exact(const std::vector<float>& x) const {
    const std::vector<float> w = widened(weight, dtype);
    Expected out;
    for (auto row = x.begin(); row != x.end(); row += in) {
      for (int64_t o = 0; o < out_dim; ++o) {
        double sum = bias[static_cast<size_t>(o)], squares = sum * sum;
        for (int64_t i = 0; i < in; ++i) {
          const double term = static_cast<double>(row[i]) * w[static_cast<size_t>(o * in + i)];
          sum += term;
          squares += term * term;
        }
        out.add(sum, std::sqrt(squares));
      }
    }
    return out;
  }
};

// Quantised weights give the bits of the same weights in float32, wherever they lie; but where blocks are added in
// integers, only their numbers.
TEST_P(QuantisedWeights, LinearEqualsWidenedWeights) {
  for (const DType t : {DType::kQ8_0, DType::kQ4_0}) {
    for (const float size : {1.0f, 1e-3f, 1e-6f}) {  // the scales of the smaller ones are subnormal
      const Product product = Product::random(random, 96, 37, t, size);
      const std::vector<float> wide = widened(product.weight, t);
      for (const int64_t tokens : {1, 2, 3, 4, 5, 6, 9, 16, 18}) {  // around the sizes of tiles
        SCOPED_TRACE(name_of(t) + " size " + std::to_string(size) + " tokens " + std::to_string(tokens));
        const std::vector<float> x = random.normal(tokens * product.in);
        const std::vector<float> expected = product.run(plain_runner(), x, wide.data(), DType::kF32);
        const Outputs found = run_everywhere([&](const Runner& r) { return Outputs{product.run(r, x), {}}; });
        adds_integers(ops()) ? expect_close(found.out, expected, kOf16Bits) : expect_same_bits(found.out, expected);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(QuantisedWeights, EmbeddingEqualsWidenedWeights) {
  constexpr int64_t kIn = 96, kOut = 37, kTokens = 20;
  for (const DType t : {DType::kQ8_0, DType::kQ4_0}) {
    SCOPED_TRACE(name_of(t));
    const Bytes bytes = quantised(random.normal(kOut * kIn), t);
    const std::vector<float> wide = widened(bytes, t);
    const std::vector<int32_t> ids = random.ids(kTokens, kOut);
    const auto run = [&](const Runner& r, const void* weight, DType dtype) {
      const auto rows = r.out(kTokens, kIn);
      r.execute(r.ops.embedding, {weight, dtype, ids.data(), kTokens, kIn, kIn, rows.data(), rows.ld()});
      std::vector<float> values = rows.values();
      for (float& v : values) v += 0.0f;  // the sign of a zero is free
      return Outputs{values, {}};
    };
    const Outputs found = run_everywhere([&](const Runner& r) {
      const auto memory = Guarded<uint8_t>::input(bytes, static_cast<int64_t>(bytes.size()), {r.layout.placement, 0});
      return run(r, memory.data(), t);
    });
    expect_same_bits(found, run(plain_runner(), wide.data(), DType::kF32));
  }
}

// A token gets the same bits alone, in any batch and from any team.
TEST_P(QuantisedWeights, RowsAreIndependent) {
  constexpr int64_t kTokens = 70;
  for (const DType t : {DType::kQ8_0, DType::kQ4_0}) {
    for (const int64_t in : {32, 224, 1056}) {
      const Product product = Product::random(random, in, 53, t);
      const std::vector<float> x = random.normal(kTokens * in);
      const std::vector<float> whole =
          run_everywhere([&](const Runner& r) { return Outputs{product.run(r, x), {}}; }).out;
      expect_close(whole, product.exact(x), allowed(ops(), in));
      std::vector<float> alone;
      for (int64_t n = 1; n <= kTokens; ++n) {
        SCOPED_TRACE(name_of(t) + " in " + std::to_string(in) + " tokens " + std::to_string(n));
        append(alone, product.run(plain_runner(), slice_rows(x, in, n - 1, n)));
        expect_same_bits(product.run(plain_runner(), slice_rows(x, in, 0, n)),
                         slice_rows(whole, product.out_dim, 0, n));
      }
      expect_same_bits(alone, whole);
    }
  }
}

// More split tokens than a cache holds, and a last strip of few outputs.
TEST_P(QuantisedWeights, LargeMatrices) {
  for (const DType t : {DType::kQ8_0, DType::kQ4_0}) {
    SCOPED_TRACE(name_of(t));
    const Product product = Product::random(random, 8224, 35, t);
    const std::vector<float> x = random.normal(83 * product.in);
    const std::vector<float> whole = product.run(plain_runner(), x);
    expect_close(whole, product.exact(x), allowed(ops(), product.in));
    expect_same_bits(product.run(plain_runner(), slice_rows(x, product.in, 82, 83)),
                     slice_rows(whole, product.out_dim, 82, 83));
  }
}

// Blocks of zeros, of numbers that differ much, and of the largest and smallest ones.
TEST_P(QuantisedWeights, ExtremeTokens) {
  constexpr int64_t kIn = 96, kTokens = 18;
  for (const DType t : {DType::kQ8_0, DType::kQ4_0}) {
    const auto judge = [&](const char* what, float weight_size, const std::vector<float>& block) {
      SCOPED_TRACE(name_of(t) + " " + what);
      const Product product = Product::random(random, kIn, 21, t, weight_size);
      std::vector<float> x = random.normal(kTokens * kIn);
      for (int64_t token = 0; token < kTokens; ++token)
        std::copy(block.begin(), block.end(), x.begin() + token * kIn + token % 3 * 32);
      const std::vector<float> out = product.run(plain_runner(), x);
      expect_close(out, product.exact(x), allowed(ops(), kIn));
      std::vector<float> alone;
      for (int64_t token = 0; token < kTokens; ++token)
        append(alone, product.run(plain_runner(), slice_rows(x, kIn, token, token + 1)));
      expect_same_bits(alone, out);
    };
    judge("zeros", 1, std::vector<float>(32));
    std::vector<float> uneven = random.normal(32, 1e-6f);
    uneven[19] = 12345.678f;
    judge("uneven", 1, uneven);
    judge("subnormal", 1, random.uniform(32, -1e-39f, 1e-39f));
    judge("largest", 1e-6f, std::vector<float>(32, 3.4e38f));
    for (const float edge : {1.984375f, 1.9921875f, 0x1.fffffep0f, -0x1.fffffep0f, 0x1.fdfdfep0f, 0x1.fdfe00p0f})
      judge("at the carry", 1, std::vector<float>(32, edge));
  }
}

// Small numbers alone keep their precision.
TEST_P(QuantisedWeights, SmallTokens) {
  for (const DType t : {DType::kQ8_0, DType::kQ4_0}) {
    SCOPED_TRACE(name_of(t));
    Product product = Product::random(random, 96, 21, t);
    product.bias.assign(product.bias.size(), 0.0f);
    const std::vector<float> x = random.normal(18 * product.in, 1e-30f);
    expect_close(product.run(plain_runner(), x), product.exact(x), allowed(ops(), product.in));
  }
}

// Of the numbers that meet a block, 16 bits count.
TEST_P(QuantisedWeights, IntegersAreExact) {
  for (const DType t : {DType::kQ8_0, DType::kQ4_0}) {
    SCOPED_TRACE(name_of(t));
    Product product = Product::random(random, 224, 37, t);
    product.bias.assign(product.bias.size(), 0.0f);
    std::vector<float> x = random.uniform(18 * product.in, -32511.0f, 32511.0f);
    for (float& v : x) v = std::round(v);
    for (size_t i = 0; i < x.size(); i += 33) x[i] = i % 2 == 0 ? 32511.0f : -32511.0f;
    expect_close(product.run(plain_runner(), x), product.exact(x), tolerance(product.in));
  }
}

TEST_P(QuantisedWeights, WhatIsNoNumberStaysSoForItsTokenOnly) {
  constexpr int64_t kIn = 96, kTokens = 18, kBad = 7;
  for (const DType t : {DType::kQ8_0, DType::kQ4_0}) {
    const Product product = Product::random(random, kIn, 21, t);
    const std::vector<float> x = random.normal(kTokens * kIn);
    const std::vector<float> clean = product.run(plain_runner(), x);
    for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
      SCOPED_TRACE(name_of(t) + " " + std::to_string(bad));
      std::vector<float> spoilt = x;
      spoilt[kBad * kIn + 40] = bad;
      const std::vector<float> out = product.run(plain_runner(), spoilt);
      expect_same_bits(slice_rows(out, product.out_dim, 0, kBad), slice_rows(clean, product.out_dim, 0, kBad));
      expect_same_bits(slice_rows(out, product.out_dim, kBad + 1, kTokens),
                       slice_rows(clean, product.out_dim, kBad + 1, kTokens));
      for (const float v : slice_rows(out, product.out_dim, kBad, kBad + 1)) EXPECT_FALSE(std::isfinite(v));
      for (const float v : product.run(plain_runner(), slice_rows(spoilt, kIn, kBad, kBad + 1)))
        EXPECT_FALSE(std::isfinite(v));
    }
  }
}

}  // namespace
}  // namespace m4j::test
