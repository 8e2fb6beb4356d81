#include "bench_models.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "random_model.h"

namespace m4j::bench {
namespace {

std::vector<int32_t> prompt(int64_t n, int64_t vocab) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) ids[static_cast<size_t>(i)] = static_cast<int32_t>((i * 7919 + 13) % vocab);
  return ids;
}

std::vector<float> logits_of(RandomModel& model, const std::vector<std::vector<int32_t>>& calls) {
  const m4j_slot slot = model.take();
  const float* logits = nullptr;
  for (const std::vector<int32_t>& tokens : calls) logits = model.advance({slot}, tokens);
  return {logits, logits + model.vocab_size()};
}

// Rounding through tens of layers of the same arithmetic in another order: to float32, or of activations to 16 bits, as
// some instruction sets do for quantised weights.
constexpr double kTolerance = 2e-4, kQuantisedTolerance = 2e-3;
// To bfloat16, which the reference does not do.
constexpr double kRoundedTolerance = 5e-2;

double tolerance_of(const std::string& dtype) {
  if (dtype == "int8" || dtype == "int4") return kQuantisedTolerance;
  return dtype == "bf16/bf16" ? kRoundedTolerance : kTolerance;
}

// What a plan calls a type of weights, perhaps with one of activations.
RandomModel model_of(const std::string& name, const std::string& dtype, int threads, const Plan& plan) {
  const Form form = form_of(dtype);
  return RandomModel(*find_shape(name), form.weights, threads, plan.simd(), RandomModel::kOnCpu, M4J_F32,
                     form.activations);
}

bool verdict(const std::string& dtype, const std::string& what, double error) {
  const bool good = error < tolerance_of(dtype);
  std::printf("check    %-60s relative error %.1e %s\n", what.c_str(), error, good ? "ok" : "WRONG");
  return good;
}

// Decode behind contexts that have really been fed. They take turns, so that a disturbance meets all of them, and every
// sample starts from a copy of its context's state.
void time_contexts(const std::string& name, const std::string& dtype, const Plan& plan, RandomModel& model, Report& report) {
  constexpr int kSteps = 16;
  std::vector<int64_t> contexts = plan.contexts;
  std::sort(contexts.begin(), contexts.end());
  const m4j_slot feeding = model.take(), stepping = model.take();
  std::vector<m4j_slot> fed;
  int64_t position = 0;
  for (int64_t context : contexts) {
    while (position < context) {
      const int64_t n = std::min<int64_t>(4096, context - position);
      model.advance({feeding}, prompt(n, model.vocab_size()));
      position += n;
    }
    fed.push_back(model.take());
    model.copy(fed.back(), feeding);
  }
  const auto seconds_of_steps = [&](m4j_slot from) {
    model.copy(stepping, from);
    const double start = seconds();
    for (int32_t i = 0; i < kSteps; ++i) model.advance({stepping}, {i});
    return seconds() - start;
  };
  std::vector<std::vector<double>> samples(contexts.size());
  for (int repeat = 0; repeat < plan.repeat; ++repeat) {
    std::vector<double> total(contexts.size());
    int rounds = 0;
    for (const double start = seconds(); seconds() - start < 0.2 * static_cast<double>(contexts.size()); ++rounds) {
      for (size_t i = 0; i < contexts.size(); ++i) total[i] += seconds_of_steps(fed[i]);
    }
    for (size_t i = 0; i < contexts.size(); ++i) samples[i].push_back(total[i] / (rounds * kSteps));
  }
  for (size_t i = 0; i < contexts.size(); ++i) {
    report.add({"context", name, dtype + " context " + std::to_string(contexts[i]), static_cast<double>(contexts[i]),
                rate_of(spread_of(samples[i]), 1), "tok/s", 0});
  }
}

}  // namespace

bool check_models(const Plan& plan) {
  bool good = true;
  for (const std::string& name : plan.models) {
    for (const std::string& dtype : plan.dtypes) {
      RandomModel model = model_of(name, dtype, 0, plan);
      RandomModel reference(model, 0, "reference");
      const std::vector<int32_t> few = prompt(3, model.vocab_size());
      good &= verdict(dtype, name + " " + dtype + ", 3 tokens against the reference",
                      relative_error(logits_of(model, {few}), logits_of(reference, {few}).data()));
      const std::vector<int32_t> many = prompt(67, model.vocab_size());
      const std::vector<float> whole = logits_of(model, {many});
      const std::vector<float> split = logits_of(model, {{many.begin(), many.begin() + 31}, {many.begin() + 31, many.end() - 1}, {many.back()}});
      good &= verdict(dtype, name + " " + dtype + ", 67 tokens in 3 calls against 1", relative_error(split, whole.data()));
    }
  }
  return good;
}

void time_models(const Plan& plan, int threads, const Ceilings& ceilings, Report& report) {
  for (const std::string& name : plan.models) {
    for (const std::string& dtype : plan.dtypes) {
      RandomModel model = model_of(name, dtype, threads, plan);
      const m4j_slot slot = model.take();
      for (int64_t length : plan.prefill_lengths) {
        const std::vector<int32_t> ids = prompt(length, model.vocab_size());
        const Spread t = time_call(
            [&] {
              model.reset(slot);
              model.advance({slot}, ids);
            },
            plan.repeat);
        report.add({"prefill", name, dtype + " L" + std::to_string(length), static_cast<double>(length),
                    rate_of(t, static_cast<double>(length)), "tok/s",
                    ceilings.sgemm_gflops.median * 1e9 / model.projection_flops()});
      }
      for (int64_t batch : plan.decode_batches) {
        std::vector<m4j_slot> slots = {slot};
        while (static_cast<int64_t>(slots.size()) < batch) slots.push_back(model.take());
        const std::vector<int32_t> ids = prompt(batch, model.vocab_size());
        const Spread t = time_call([&] { model.advance(slots, ids); }, plan.repeat, 0.3);
        const double bytes = static_cast<double>(model.matrix_bytes()) + 2.0 * static_cast<double>(batch * model.state_bytes());
        report.add({"decode", name, dtype + " B" + std::to_string(batch), static_cast<double>(batch),
                    rate_of(t, static_cast<double>(batch)), "tok/s",
                    ceilings.read_gb_s.median * 1e9 / bytes * static_cast<double>(batch)});
      }
      time_contexts(name, dtype, plan, model, report);
    }
  }
}

}  // namespace m4j::bench
