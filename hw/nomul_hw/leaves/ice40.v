  // The carry takes the LUT's own inputs: what is added must be formed in front of it. But the LUT has an input left, to
  // invert the sum: if a is to be inverted, c and d are instead, since ~a + x = ~(a + ~x + 1).
  wire [WIDTH-1:0] invert = G == 4'b0110 ? b : {WIDTH{1'b0}}, first = left ^ invert, second = right ^ invert;
  wire [WIDTH-1:0] carry;
  assign carry[0] = invert[0];
  genvar i;
  generate
    for (i = 0; i < WIDTH; i = i + 1) begin : place
      SB_LUT4 #(.LUT_INIT(16'h6996)) lut (.I0(invert[i]), .I1(first[i]), .I2(second[i]), .I3(carry[i]), .O(s[i]));
      if (i + 1 < WIDTH)
        SB_CARRY chain (.I0(first[i]), .I1(second[i]), .CI(carry[i]), .CO(carry[i+1]));
    end
  endgenerate
