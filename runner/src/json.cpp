#include "json.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "error.h"

namespace edge {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 64;

}  // namespace

JsonValue parse_json(const Bytes& text, const std::string& file) {
  std::vector<std::set<std::string>> keys;  // of each object that is still open: nlohmann/json would keep the last of a key
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMaxDepth) throw Error(file + " is nested deeper than " + std::to_string(kMaxDepth));
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
      throw Error(file + " holds the key " + parsed.get<std::string>() + " twice");
    }
    return true;
  };
  try {
    return {std::make_shared<const json>(json::parse(text.begin(), text.end(), check)), file};
  } catch (const json::parse_error& reason) {
    throw Error(file + " is not valid JSON (at byte " + std::to_string(reason.byte) + ")");
  } catch (const json::exception& reason) {  // a number that no double holds
    throw Error(file + " is not valid JSON (" + reason.what() + ")");
  }
}

void JsonValue::fail(const std::string& expected) const { throw Error(place_ + ": " + value_->type_name() + "; expected " + expected); }

JsonValue JsonValue::operator[](const std::string& key) const {
  if (!has(key)) throw Error(place_ + " has no " + key);
  return {std::shared_ptr<const json>(value_, &value_->at(key)), place_ + ": " + key};
}

bool JsonValue::has(const std::string& key) const { return value_->is_object() && value_->contains(key); }

std::vector<JsonValue> JsonValue::items() const {
  if (!value_->is_array()) fail("an array");
  std::vector<JsonValue> values;
  for (const json& item : *value_) {
    values.push_back({std::shared_ptr<const json>(value_, &item), place_ + "[" + std::to_string(values.size()) + "]"});
  }
  return values;
}

std::vector<std::string> JsonValue::keys() const {
  if (!value_->is_object()) fail("an object");
  std::vector<std::string> names;
  for (const auto& entry : value_->items()) names.push_back(entry.key());
  return names;
}

std::string JsonValue::string() const {
  if (!value_->is_string()) fail("a string");
  return value_->get<std::string>();
}

bool JsonValue::boolean() const {
  if (!value_->is_boolean()) fail("true or false");
  return value_->get<bool>();
}

double JsonValue::number() const {
  if (!value_->is_number()) fail("a number");
  return value_->get<double>();
}

std::size_t JsonValue::count() const {
  const double value = number();
  if (value < 0 || value >= 2147483648.0 || value != std::floor(value)) fail("a whole number, at least 0 and below 2^31");
  return static_cast<std::size_t>(value);
}

std::string quote_json(const std::string& text) { return json(text).dump(-1, ' ', true, json::error_handler_t::replace); }

std::string escape_for_terminal(const std::string& text) {
  const std::string quoted = json(text).dump(-1, ' ', false, json::error_handler_t::replace);
  std::string line;
  for (std::size_t i = 1; i + 1 < quoted.size(); ++i) {  // without the quotes around it, and their escapes within
    if (quoted[i] == '\\' && (quoted[i + 1] == '"' || quoted[i + 1] == '\\')) ++i;
    line += quoted[i] == '\x7f' ? std::string("\\u007f") : std::string(1, quoted[i]);
  }
  return line;
}

}  // namespace edge
