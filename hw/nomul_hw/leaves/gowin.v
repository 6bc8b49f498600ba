  // The adder can subtract: it takes in a sign, if f is (b & c) ^ d.
  wire [WIDTH-1:0] operand = F == 8'h78 ? b & c : right, add = F == 8'h78 ? ~d : {WIDTH{1'b1}};
  wire [WIDTH:0] carry;
  assign carry[0] = 1'b0;
  genvar i;
  generate
    for (i = 0; i < WIDTH; i = i + 1) begin : place
      ALU #(.ALU_MODE(2)) cell_i (
          .I0(left[i]), .I1(operand[i]), .I3(add[i]), .CIN(carry[i]), .COUT(carry[i+1]), .SUM(s[i]));
    end
  endgenerate
