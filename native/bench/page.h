// All results as one page with charts.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace m4j::bench {

// `report` has what was measured of "native", "long" (both as Report makes them), "java" and "peers" (as the programs of
// tests/bench write them). Throws nlohmann::json::exception if they are of another form.
std::string page(const nlohmann::ordered_json& report);

}  // namespace m4j::bench
