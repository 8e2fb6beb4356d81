// m4j_abi_layout against the text of the header: nothing that is declared may be missing from it.
#include <gtest/gtest.h>

#include <cstddef>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "mamba4j.h"

namespace {

std::string header() {
  std::ifstream in(M4J_GOLDENS_DIR "/../../native/include/mamba4j.h");
  std::stringstream text;
  text << in.rdbuf();
  return std::regex_replace(text.str(), std::regex("/\\*[^*]*\\*+([^/*][^*]*\\*+)*/"), " ");
}

std::set<std::string> layout_lines() {
  std::istringstream in(m4j_abi_layout());
  std::set<std::string> lines;
  for (std::string line; std::getline(in, line);) EXPECT_TRUE(lines.insert(line).second) << line;
  return lines;
}

// "const m4j_slot* slots" -> "ptr"
std::string abi_type(const std::string& declaration) {
  if (declaration.find('*') != std::string::npos) return "ptr";
  for (const auto& [c_name, name] : {std::pair{"int64_t", "i64"}, {"m4j_slot", "u64"}, {"m4j_status", "i32"}}) {
    if (std::regex_search(declaration, std::regex("\\b" + std::string(c_name) + "\\b"))) return name;
  }
  if (std::regex_search(declaration, std::regex("\\buint64_t\\b"))) return "u64";
  if (std::regex_search(declaration, std::regex("\\bint32_t\\b"))) return "i32";
  return declaration.find("void") != std::string::npos ? "void" : "unknown type: " + declaration;
}

std::set<std::string> found(const std::string& text, const std::string& pattern) {
  std::set<std::string> result;
  const std::regex regex(pattern);
  for (std::sregex_iterator i(text.begin(), text.end(), regex), end; i != end; ++i) result.insert((*i)[1]);
  return result;
}

std::set<std::string> of_kind(const std::string& kind) {
  std::set<std::string> names;
  for (const std::string& line : layout_lines()) {
    if (line.rfind(kind + " ", 0) != 0) continue;
    names.insert(line.substr(kind.size() + 1, line.find(' ', kind.size() + 1) - kind.size() - 1));
  }
  return names;
}

TEST(ApiAbiTest, EveryFunctionOfTheHeaderIsListedWithItsTypes) {
  const std::string text = header();
  const std::regex declaration("M4J_API ([^;(]*?)(m4j_\\w+)\\(([^)]*)\\);");
  std::set<std::string> expected, actual;
  for (std::sregex_iterator i(text.begin(), text.end(), declaration), end; i != end; ++i) {
    std::string args;
    std::istringstream in((*i)[3]);
    for (std::string arg; std::getline(in, arg, ',');) {
      if (arg != "void") args += (args.empty() ? "" : ",") + abi_type(arg);
    }
    expected.insert("function " + (*i)[2].str() + " " + abi_type((*i)[1]) + "(" + args + ")");
  }
  for (const std::string& line : layout_lines()) {
    if (line.rfind("function ", 0) == 0) actual.insert(line);
  }
  EXPECT_EQ(actual, expected);
  EXPECT_GE(expected.size(), 35u);
}

TEST(ApiAbiTest, EveryStructOfTheHeaderIsListed) {
  EXPECT_EQ(of_kind("struct"), found(header(), "typedef struct (m4j_\\w+) \\{"));
}

TEST(ApiAbiTest, EveryConstantOfTheHeaderIsListed) {
  std::set<std::string> expected = found(header(), "(M4J_[A-Z0-9_]+) = \\d+");
  expected.merge(found(header(), "#define (M4J_[A-Z0-9_]+) \\d+"));
  EXPECT_EQ(of_kind("constant"), expected);
}

TEST(ApiAbiTest, SizesAndOffsetsAreTheCompilers) {
  const auto lines = layout_lines();
  EXPECT_TRUE(lines.count("struct m4j_tensor " + std::to_string(sizeof(m4j_tensor))));
  EXPECT_TRUE(lines.count("field m4j_tensor.strides " + std::to_string(offsetof(m4j_tensor, strides)) + " 32"));
  EXPECT_TRUE(lines.count("field m4j_error.message 8 504"));
  EXPECT_TRUE(lines.count("constant M4J_ERR_INTERNAL 8"));
}

TEST(ApiAbiTest, Versions) {
  EXPECT_EQ(m4j_abi_version(), M4J_ABI_VERSION);
  EXPECT_TRUE(std::regex_match(m4j_version(), std::regex("\\d+\\.\\d+\\.\\d+"))) << m4j_version();
}

}  // namespace
